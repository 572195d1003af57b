%%% The pool as a list of node ids, for PropEr: what each call returns and leaves behind, against
%%% real peers. After every command the pool is left to come to rest, so the model needs no time.
%%% What becomes of messages whose peer stands still does not follow from the commands: of each the
%%% model knows what it may be, and takes over what it was if the account is right.
-module(pool_model).

-behaviour(proper_statem).

-include_lib("proper/include/proper.hrl").

-export([prop_pool_behaves_as_its_model/1, peers/1]).
-export([initial_state/0, command/1, precondition/2, next_state/3, postcondition/3]).
-export([
    get/3,
    get_refused/2,
    get_nowhere/2,
    get_given_up/2,
    send/4,
    send_refused/3,
    send_nowhere/3,
    send_on_stream/3,
    close_stream/2,
    open_stream/2,
    close_opened/2,
    remove/2,
    info/2,
    set_limit/2,
    close_by_peer/2,
    restart_peer/3,
    send_to_still/5,
    restart_server/2
]).

-define(POOL, macula_gateway_mesh).
-define(NODES, 8).
-define(PEERS, 3).
-define(LIMIT, 3).
%% Longer than anything takes on a busy machine.
-define(WAIT_MS, 20_000).
%% How long one waits who is not to be answered.
-define(SHORT_MS, 20).
%% The environment of a run, bound to this variable.
-define(ENV, {var, env}).

-record(model, {
    %% The most recently used first.
    order = [] :: [integer()],
    limit = ?LIMIT :: pos_integer(),
    %% At which peer each pooled node is.
    at = #{} :: #{integer() => integer()},
    %% Nodes with a stream that a caller opened.
    busy = [] :: [integer()],
    %% Nodes whose pooled stream has been closed.
    closed = [] :: [integer()],
    hits = 0 :: non_neg_integer(),
    misses = 0 :: non_neg_integer(),
    opened = 0 :: non_neg_integer(),
    evictions = 0 :: non_neg_integer(),
    removals = 0 :: non_neg_integer(),
    delivered = 0 :: non_neg_integer(),
    dropped = #{} :: #{atom() => pos_integer()},
    unconfirmed = 0 :: non_neg_integer()
}).

%% `Surroundings' are shared by all runs: peers that take messages, one that refuses connections,
%% and an address that never answers.
prop_pool_behaves_as_its_model(#{peers := _, refusing := _, silent := _} = Surroundings) ->
    ?FORALL(
        Commands,
        more_commands(3, commands(?MODULE)),
        begin
            Env = set_up(Surroundings),
            {History, Model, Result} = run_commands(?MODULE, Commands, [{env, Env}]),
            Rest = tear_down(Env),
            ?WHENFAIL(
                io:format("result ~p~nat rest ~p~nlast model ~p~nhistory ~p~n", [
                    Result, Rest, Model, History
                ]),
                aggregate(
                    command_names(Commands), Result =:= ok andalso is_right_at_rest(Rest, Model)
                )
            )
        end
    ).

%%% The commands

initial_state() -> #model{}.

command(#model{order = Order, busy = Busy, at = At}) ->
    Node = integer(1, ?NODES),
    Peer = integer(1, ?PEERS),
    How = oneof([send_async, send]),
    Pooled = [
        {3, {call, ?MODULE, send_on_stream, [?ENV, oneof(Order), oneof([send, async_send])]}},
        {2, {call, ?MODULE, close_stream, [?ENV, oneof(Order)]}},
        {4, {call, ?MODULE, open_stream, [?ENV, oneof(Order)]}},
        {2, oneof([still(There, maps:get(There, At)) || There <- Order])}
    ],
    Opened = [{4, {call, ?MODULE, close_opened, [?ENV, oneof(Busy)]}}],
    Always = [
        {10, {call, ?MODULE, get, [?ENV, Node, Peer]}},
        {1, {call, ?MODULE, get_refused, [?ENV, Node]}},
        {1, {call, ?MODULE, get_nowhere, [?ENV, Node]}},
        {1, {call, ?MODULE, get_given_up, [?ENV, Node]}},
        {8, {call, ?MODULE, send, [?ENV, Node, Peer, How]}},
        {1, {call, ?MODULE, send_refused, [?ENV, Node, How]}},
        {1, {call, ?MODULE, send_nowhere, [?ENV, Node, How]}},
        {2, {call, ?MODULE, remove, [?ENV, Node]}},
        {2, {call, ?MODULE, info, [?ENV, Node]}},
        {1, {call, ?MODULE, set_limit, [?ENV, integer(1, 5)]}},
        {1, {call, ?MODULE, close_by_peer, [?ENV, Peer]}},
        {1, {call, ?MODULE, restart_peer, [?ENV, Peer, oneof([stop, kill])]}},
        {1, {call, ?MODULE, restart_server, [?ENV, oneof([stop, kill])]}}
    ],
    frequency(
        Always ++ [Choice || Choice <- Pooled, Order =/= []] ++
            [Choice || Choice <- Opened, Busy =/= []]
    ).

still(Node, Peer) ->
    Count = integer(0, 4),
    {call, ?MODULE, send_to_still, [?ENV, Node, Peer, Count, oneof([resume, remove, kill])]}.

precondition(#model{at = At}, {call, _, send_to_still, [_, Node, Peer, _, _]}) ->
    maps:get(Node, At, nowhere) =:= Peer;
precondition(Model, {call, _, get_given_up, [_, Node]}) ->
    not is_pooled(Node, Model);
precondition(Model, {call, _, open_stream, [_, Node]}) ->
    is_pooled(Node, Model) andalso not lists:member(Node, Model#model.busy);
precondition(Model, {call, _, close_opened, [_, Node]}) ->
    lists:member(Node, Model#model.busy);
precondition(Model, {call, _, send_on_stream, [_, Node, _]}) ->
    is_pooled(Node, Model);
precondition(Model, {call, _, close_stream, [_, Node]}) ->
    is_pooled(Node, Model);
precondition(_Model, _Call) ->
    true.

%% A command's result is its outcome and what the pool then looks like.
postcondition(Model, {call, _, Command, [_ | Arguments]} = Call, {Outcome, Seen}) ->
    Next = next_state(Model, {Outcome, Seen}, Call),
    {Framed, Figures} = maps:take(framed, Seen),
    is_outcome(Command, Arguments, Outcome, Model, Next) andalso Figures =:= view(Next) andalso
        is_framed(Framed, Next).

is_outcome(send_to_still, [_, _, Count, End], Told, Model, Next) ->
    is_account([fates(Told, End) | lists:duplicate(Count, fates(End))], Model, Next);
is_outcome(Command, Arguments, Outcome, Model, _Next) ->
    Outcome =:= outcome(Command, Arguments, Model).

next_state(Model, Result, {call, _, send_to_still, [_, Node, Peer, _, End]}) ->
    settled(Result, ends(End, Node, Peer, touch(Node, Model)));
next_state(Model, _Result, {call, _, Command, [_ | Arguments]}) ->
    next(Command, Arguments, Model).

%% While the commands are made up, nothing has become of their messages yet.
settled({var, _}, Model) ->
    Model;
settled({_, Figures}, Model) ->
    #{
        messages_delivered := Delivered,
        messages_dropped := Dropped,
        messages_unconfirmed := Unconfirmed
    } = Figures,
    Model#model{delivered = Delivered, dropped = Dropped, unconfirmed = Unconfirmed}.

%% What may become of a message on its way to a peer that stands still, by what happens then.
fates(resume) -> [delivered];
fates(remove) -> [delivered, dropped, unconfirmed];
fates(kill) -> [dropped, unconfirmed].

%% And of one whose sender was told something before that. Nobody can have acknowledged it by then;
%% it may be later.
fates({error, {unconfirmed, _}}, End) -> fates(End) -- [dropped];
fates({error, _}, _End) -> [dropped];
fates(ok, _End) -> [].

%% Whether each message is counted once, and as something that it may be.
is_account(Messages, Model, Next) ->
    Fates = [delivered, dropped, unconfirmed],
    Counts = [{Fate, count(Fate, Next) - count(Fate, Model)} || Fate <- Fates],
    IsPossible = fun({Fate, Count}) ->
        Surely = length([Each || Each <- Messages, Each =:= [Fate]]),
        Perhaps = length([Each || Each <- Messages, lists:member(Fate, Each)]),
        Surely =< Count andalso Count =< Perhaps
    end,
    lists:sum([Count || {_, Count} <- Counts]) =:= length(Messages) andalso
        lists:all(IsPossible, Counts).

count(delivered, Model) -> Model#model.delivered;
count(dropped, Model) -> lists:sum(maps:values(Model#model.dropped));
count(unconfirmed, Model) -> Model#model.unconfirmed.

%% Peers have got what was delivered, and nothing that was dropped.
is_framed(Framed, #model{delivered = Delivered, unconfirmed = Unconfirmed}) ->
    Delivered =< Framed andalso Framed =< Delivered + Unconfirmed.

%%% The model

outcome(get, [Node, _], Model) -> outcome_of_get(Node, new, Model);
outcome(get_refused, [Node], Model) -> outcome_of_get(Node, {connect_failed, refused}, Model);
outcome(get_nowhere, [Node], Model) ->
    outcome_of_get(Node, {connect_failed, {bad_address, nowhere}}, Model);
outcome(get_given_up, [_], _) -> {connect_failed, removed};
outcome(send_refused, [Node, send], Model) ->
    outcome_of_send(Node, {connect_failed, refused}, Model);
outcome(send_nowhere, [Node, send], Model) ->
    outcome_of_send(Node, {connect_failed, {bad_address, nowhere}}, Model);
outcome(send_on_stream, [Node, _], Model) ->
    case lists:member(Node, Model#model.closed) of
        true -> {error, closed};
        false -> ok
    end;
outcome(info, [Node], Model) -> maps:get(Node, Model#model.at, not_found);
outcome(_, _, _) -> ok.

outcome_of_get(Node, Otherwise, Model) ->
    case {is_pooled(Node, Model), lists:member(Node, Model#model.closed)} of
        {true, false} -> same;
        {true, true} -> fresh;
        {false, _} -> Otherwise
    end.

outcome_of_send(Node, Otherwise, Model) ->
    case is_pooled(Node, Model) of
        true -> ok;
        false -> {error, Otherwise}
    end.

next(get, [Node, Peer], Model) ->
    case is_pooled(Node, Model) of
        true -> hit(Node, Model);
        false -> admit(Node, Peer, missed(Model))
    end;
next(get_refused, [Node], Model) ->
    case is_pooled(Node, Model) of
        true -> hit(Node, Model);
        false -> missed(Model)
    end;
next(get_nowhere, [Node], Model) ->
    case is_pooled(Node, Model) of
        true -> hit(Node, Model);
        false -> Model
    end;
next(get_given_up, [_], #model{removals = Removals} = Model) ->
    missed(Model#model{removals = Removals + 1});
next(send, [Node, Peer, _], Model) ->
    case is_pooled(Node, Model) of
        true -> delivered(touch(Node, Model));
        false -> delivered(admit(Node, Peer, Model))
    end;
next(send_refused, [Node, _], Model) -> deliver_or_drop(Node, refused, Model);
next(send_nowhere, [Node, _], Model) -> deliver_or_drop(Node, bad_address, Model);
next(send_on_stream, [Node, _], Model) ->
    case lists:member(Node, Model#model.closed) of
        true -> Model;
        false -> delivered(touch(Node, Model))
    end;
next(close_stream, [Node], #model{closed = Closed} = Model) ->
    Model#model{closed = lists:usort([Node | Closed])};
next(open_stream, [Node], #model{busy = Busy} = Model) ->
    Model#model{busy = [Node | Busy]};
next(close_opened, [Node], #model{busy = Busy} = Model) ->
    Model#model{busy = lists:delete(Node, Busy)};
next(remove, [Node], #model{removals = Removals} = Model) ->
    case is_pooled(Node, Model) of
        true -> leave(Node, Model#model{removals = Removals + 1});
        false -> Model
    end;
next(info, [_], Model) ->
    Model;
next(set_limit, [Limit], Model) ->
    evict(none, Model#model{limit = Limit});
next(close_by_peer, [Peer], Model) ->
    lists:foldl(fun leave/2, Model, nodes_at(Peer, Model));
next(restart_peer, [Peer, stop], Model) ->
    next(close_by_peer, [Peer], Model);
next(restart_peer, [Peer, kill], #model{removals = Removals} = Model) ->
    Gone = nodes_at(Peer, Model),
    lists:foldl(fun leave/2, Model#model{removals = Removals + length(Gone)}, Gone);
next(restart_server, [_], _Model) ->
    initial_state().

ends(resume, _Node, _Peer, Model) -> Model;
ends(remove, Node, _Peer, Model) -> next(remove, [Node], Model);
ends(kill, _Node, Peer, Model) -> next(restart_peer, [Peer, kill], Model).

nodes_at(Peer, #model{at = At}) ->
    [Node || {Node, There} <- maps:to_list(At), There =:= Peer].

hit(Node, #model{hits = Hits, closed = Closed} = Model) ->
    touch(Node, Model#model{hits = Hits + 1, closed = lists:delete(Node, Closed)}).

missed(#model{misses = Misses} = Model) -> Model#model{misses = Misses + 1}.

touch(Node, #model{order = Order} = Model) ->
    Model#model{order = [Node | lists:delete(Node, Order)]}.

admit(Node, Peer, #model{at = At, opened = Opened} = Model) ->
    evict(Node, touch(Node, Model#model{at = At#{Node => Peer}, opened = Opened + 1})).

delivered(#model{delivered = Delivered} = Model) -> Model#model{delivered = Delivered + 1}.

deliver_or_drop(Node, Cause, #model{dropped = Dropped} = Model) ->
    case is_pooled(Node, Model) of
        true ->
            delivered(touch(Node, Model));
        false ->
            Count = maps:get(Cause, Dropped, 0),
            Model#model{dropped = Dropped#{Cause => Count + 1}}
    end.

%% The least recently used idle one goes, else the least recently used; never the newcomer.
evict(Newcomer, #model{order = Order, limit = Limit} = Model) when length(Order) > Limit ->
    Oldest = lists:delete(Newcomer, lists:reverse(Order)),
    [Victim | _] = [Node || Node <- Oldest, not lists:member(Node, Model#model.busy)] ++ Oldest,
    Evictions = Model#model.evictions + 1,
    evict(Newcomer, leave(Victim, Model#model{evictions = Evictions}));
evict(_Newcomer, Model) ->
    Model.

leave(Node, #model{order = Order, at = At, busy = Busy, closed = Closed} = Model) ->
    Model#model{
        order = lists:delete(Node, Order),
        at = maps:remove(Node, At),
        busy = lists:delete(Node, Busy),
        closed = lists:delete(Node, Closed)
    }.

is_pooled(Node, #model{order = Order}) -> lists:member(Node, Order).

view(#model{order = Order, busy = Busy} = Model) ->
    State = fun(Node) -> maps:get(lists:member(Node, Busy), #{true => busy, false => idle}) end,
    #{
        nodes => [{Node, State(Node)} || Node <- Order],
        size => length(Order),
        limit => Model#model.limit,
        hits => Model#model.hits,
        misses => Model#model.misses,
        connections_opened => Model#model.opened,
        evictions => Model#model.evictions,
        removals => Model#model.removals,
        messages_delivered => Model#model.delivered,
        messages_dropped => Model#model.dropped,
        messages_unconfirmed => Model#model.unconfirmed,
        panics => 0
    }.

%% What the peers saw, once nothing of the pool is left.
is_right_at_rest(Rest, #model{opened = Opened} = Model) ->
    {Framed, Figures} = maps:take(framed, Rest),
    Figures =:= #{opened => Opened, open => 0, corrupt => 0, timed_out => 0} andalso
        is_framed(Framed, Model).

%%% The commands, carried out

get(Env, Node, Peer) -> get_at(Env, Node, address(Env, Peer)).

get_refused(#{refusing := Refusing} = Env, Node) ->
    get_at(Env, Node, mesh_peer:address(Refusing)).

get_nowhere(Env, Node) -> get_at(Env, Node, nowhere).

%% A dial to an address that never answers, taken back.
get_given_up(#{silent := Silent} = Env, Node) ->
    {Caller, Monitor} = spawn_monitor(fun() ->
        exit(?POOL:get_or_create_connection(?POOL, id(Node), Silent))
    end),
    mesh_load:eventually(1, fun() -> mesh_ct:stat(?POOL, dialing) end),
    ok = ?POOL:remove_connection(?POOL, id(Node)),
    receive
        {'DOWN', Monitor, process, Caller, {error, Reason}} -> look(Env, Reason)
    end.

send(Env, Node, Peer, How) -> send_to(Env, Node, address(Env, Peer), How).

send_refused(#{refusing := Refusing} = Env, Node, How) ->
    send_to(Env, Node, mesh_peer:address(Refusing), How).

send_nowhere(Env, Node, How) -> send_to(Env, Node, nowhere, How).

send_on_stream(Env, Node, How) ->
    look(Env, macula_quic:How(field(stream, Env, Node), message())).

close_stream(Env, Node) ->
    look(Env, macula_quic:close(field(stream, Env, Node))).

%% A stream closes when nobody holds it any more, so it is kept.
open_stream(Env, Node) ->
    {ok, Stream} = macula_quic:open_stream(field(connection, Env, Node)),
    _ = put({?MODULE, Node}, Stream),
    look(Env, ok).

close_opened(Env, Node) ->
    ok = macula_quic:close(erase({?MODULE, Node})),
    mesh_load:eventually(0, fun() -> field(streams, Env, Node) end),
    look(Env, ok).

remove(Env, Node) ->
    look(Env, ?POOL:remove_connection(?POOL, id(Node))).

info(Env, Node) ->
    case ?POOL:get_connection_info(?POOL, id(Node)) of
        {ok, #{address := Address, peername := Address}} -> look(Env, index(Address, Env));
        not_found -> look(Env, not_found)
    end.

set_limit(Env, Limit) ->
    look(Env, ?POOL:set_max_connections(?POOL, Limit)).

close_by_peer(Env, Peer) ->
    {closed, _} = mesh_peer:command(peer(Env, Peer), "close 9"),
    await_left(Env, Peer),
    look(Env, ok).

%% One that stops says so. One that is killed says nothing, so its nodes are removed, as by who has
%% heard of it otherwise. What it has counted is kept for it.
restart_peer(Env, Peer, How) ->
    ok = replace_peer(How, Env, Peer, mesh_peer:stats(peer(Env, Peer))),
    look(Env, ok).

replace_peer(How, Env, Peer, Counts) ->
    Former = peer(Env, Peer),
    _ = put({?MODULE, lost}, add(lost(), maps:with([connections_opened, framed], Counts))),
    ok = mesh_peer:How(Former),
    Options = ["--port", integer_to_list(mesh_peer:port(Former))],
    _ = put({?MODULE, peer, Peer}, mesh_peer:start(Options)),
    ok = forget_nodes(How, Env, Peer),
    await_left(Env, Peer).

forget_nodes(stop, _Env, _Peer) ->
    ok;
forget_nodes(kill, Env, Peer) ->
    [ok = ?POOL:remove_connection(?POOL, NodeId) || NodeId <- nodes_of(Env, Peer)],
    ok.

%% Messages on their way to a peer that stands still, the last of which somebody waits for; then it
%% goes on, or does so when its node has been removed, or never does.
send_to_still(Env, Node, Peer, Count, End) ->
    Former = peer(Env, Peer),
    Counts = mesh_peer:stats(Former),
    ok = mesh_peer:pause(Former),
    Target = [?POOL, id(Node), address(Env, Peer), message()],
    [ok = apply(?POOL, send_async, Target) || _ <- lists:seq(1, Count)],
    Told = apply(?POOL, send, Target ++ [?SHORT_MS]),
    ok = end_still(End, Env, Node, Peer, Counts),
    look(Env, Told).

end_still(resume, Env, _Node, Peer, _Counts) ->
    mesh_peer:resume(peer(Env, Peer));
end_still(remove, Env, Node, Peer, _Counts) ->
    ok = ?POOL:remove_connection(?POOL, id(Node)),
    mesh_peer:resume(peer(Env, Peer));
end_still(kill, Env, _Node, Peer, Counts) ->
    replace_peer(kill, Env, Peer, Counts).

%% Whatever its end, the server's connections end with it, and its successor begins anew.
restart_server(#{pool := Options} = Env, How) ->
    ok = end_server(How, whereis(?POOL)),
    await_closed(Env),
    ok = begin_counting(Env),
    {ok, _} = ?POOL:start_link(Options),
    look(Env, ok).

end_server(stop, Server) ->
    ?POOL:stop(Server);
end_server(kill, Server) ->
    unlink(Server),
    Monitor = monitor(process, Server),
    exit(Server, kill),
    receive
        {'DOWN', Monitor, process, Server, _} -> ok
    end.

await_left(Env, Peer) ->
    mesh_load:eventually([], fun() -> nodes_of(Env, Peer) end).

nodes_of(Env, Peer) ->
    Address = address(Env, Peer),
    {ok, List} = ?POOL:list_connections(?POOL),
    [Node || {Node, #{peername := There}} <- List, There =:= Address].

get_at(Env, Node, Address) ->
    Before = ?POOL:get_connection_info(?POOL, id(Node)),
    Outcome =
        case {?POOL:get_or_create_connection(?POOL, id(Node), Address), Before} of
            {{ok, Stream}, {ok, #{stream := Stream}}} -> same;
            {{ok, _}, {ok, _}} -> fresh;
            {{ok, _}, not_found} -> new;
            {{error, Reason}, _} -> Reason
        end,
    look(Env, Outcome).

send_to(Env, Node, Address, send_async) ->
    look(Env, ?POOL:send_async(?POOL, id(Node), Address, message()));
send_to(Env, Node, Address, send) ->
    look(Env, ?POOL:send(?POOL, id(Node), Address, message(), ?WAIT_MS)).

%% Waits until the pool is at rest and its peers have noticed all of it, and looks at it.
look(Env, Outcome) ->
    mesh_load:eventually({0, 0, 0, 0}, fun() ->
        {ok, #{
            dialing := Dialing,
            outstanding_messages := Outstanding,
            connections_opened := Opened,
            messages_delivered := Delivered
        }} = ?POOL:get_stats(?POOL),
        Unseen = Opened - seen(connections_opened, Env),
        {Dialing, Outstanding, Unseen, max(0, Delivered - seen(framed, Env))}
    end),
    {ok, List} = ?POOL:list_connections(?POOL),
    {ok, Stats} = ?POOL:get_stats(?POOL),
    Figures = maps:with(maps:keys(view(#model{})), Stats),
    Nodes = [{binary:decode_unsigned(Id), State} || {Id, #{state := State}} <- List],
    {Outcome, Figures#{nodes => Nodes, framed => seen(framed, Env)}}.

set_up(Surroundings) ->
    %% The linger time only holds up the eviction of nodes with an opened stream, and of dead peers.
    %% Nobody is suspected: a peer stands still no longer than it is told to.
    Options = #{
        max_mesh_connections => ?LIMIT,
        linger_ms => 50,
        connect_timeout_ms => 9_000,
        ack_timeout_ms => ?WAIT_MS
    },
    Env = Surroundings#{pool => Options},
    ok = begin_counting(Env),
    {ok, _} = ?POOL:start_link(Options),
    Env.

tear_down(Env) ->
    ok = ?POOL:stop(?POOL),
    await_closed(Env),
    #{
        opened => seen(connections_opened, Env),
        open => 0,
        framed => seen(framed, Env),
        corrupt => seen(corrupt, Env),
        timed_out => seen(closed_by_timeout, Env)
    }.

await_closed(Env) ->
    mesh_load:await_peers(peers(Env), connections_open, 0).

begin_counting(Env) ->
    _ = put({?MODULE, lost}, #{}),
    [ok = mesh_peer:command(Peer, "reset_stats") || Peer <- peers(Env)],
    ok.

%% What the peers of now and those before them have counted.
seen(Field, Env) ->
    Now = [maps:get(Field, mesh_peer:stats(Peer)) || Peer <- peers(Env)],
    maps:get(Field, lost(), 0) + lists:sum(Now).

lost() -> get({?MODULE, lost}).

add(Some, More) ->
    maps:map(fun(Key, Count) -> Count + maps:get(Key, Some, 0) end, More).

%% The peers of now: one that was restarted is another process in the same place.
peers(Env) -> [peer(Env, N) || N <- lists:seq(1, ?PEERS)].

peer(#{peers := Peers}, N) ->
    case get({?MODULE, peer, N}) of
        undefined -> lists:nth(N, Peers);
        Successor -> Successor
    end.

field(Key, _Env, Node) ->
    {ok, #{Key := Value}} = ?POOL:get_connection_info(?POOL, id(Node)),
    Value.

address(Env, N) -> mesh_peer:address(peer(Env, N)).

index(Address, Env) ->
    [Index] = [N || N <- lists:seq(1, ?PEERS), address(Env, N) =:= Address],
    Index.

id(Node) -> mesh_peer:node_id(Node).

message() -> mesh_peer:frame(0, 100).
