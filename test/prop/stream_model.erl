%%% Streams between a listener's connection and its client's as queues of frames, for PropEr:
%%% whatever their ends' modes, whoever owns them, and whoever of these is killed, each frame comes
%%% once, whole and in its order, and an end comes behind the last. Of what is given up, some may
%%% come; what is not wanted does not, and nothing of the other direction is lost with either.
-module(stream_model).

-behaviour(proper_statem).

-include_lib("proper/include/proper.hrl").

-export([prop_streams_behave_as_their_model/0]).
-export([initial_state/0, command/1, precondition/2, next_state/3, postcondition/3]).
-export([open/3, send/3, send_finished/2, finish/2, recv/2, recv_nothing/2, mode/3, give/3]).
-export([reset/2, drain/2, stop/2, abort/2, kill/2]).

-define(STREAMS, 4).
-define(OWNERS, 3).
%% Longer than anything takes: only a failing run waits for it.
-define(DEADLINE_MS, 20_000).
%% How long something that must not come is waited for.
-define(SILENCE_MS, 5).
-define(ENV, {var, env}).
%% Flags of async_shutdown_stream/3, and the code with which halves are given up.
-define(GRACEFUL, 1).
-define(ABORT_SEND, 2).
-define(ABORT_RECEIVE, 4).
-define(IMMEDIATE, 8).
-define(CODE, 7).

%% One end of a stream: the frames on their way to it, its owner, and how far its halves are.
-record(tip, {
    coming = [] :: [pos_integer()],
    owner :: pos_integer() | dead,
    sending = open :: open | finished | reset | refused,
    reading = open :: open | stopped
}).

-record(model, {
    tips = #{} :: #{{pos_integer(), near | far} => #tip{}},
    sent = 0 :: non_neg_integer()
}).

prop_streams_behave_as_their_model() ->
    ?FORALL(
        Commands,
        more_commands(2, commands(?MODULE)),
        begin
            Env = set_up(),
            {History, Model, Result} = run_commands(?MODULE, Commands, [{env, Env}]),
            Left = left(Env, Model, Result),
            ok = tear_down(Env),
            ?WHENFAIL(
                io:format("result ~p~nleft ~p~nmodel ~p~nhistory ~p~n", [
                    Result, Left, Model, History
                ]),
                aggregate(command_names(Commands), Result =:= ok andalso Left =:= [])
            )
        end
    ).

%%% The commands

initial_state() -> #model{}.

command(#model{tips = Tips} = Model) ->
    Count = map_size(Tips) div 2,
    Open = {call, ?MODULE, open, [?ENV, Count + 1, oneof([client, server])]},
    Kill = {call, ?MODULE, kill, [?ENV, integer(1, ?OWNERS)]},
    OfTips = [
        {8, send, [integer(0, 20_000)]},
        {1, send_finished, []},
        {8, recv, []},
        {1, recv_nothing, []},
        {4, mode, [oneof([true, false, once, integer(1, 3)])]},
        {4, give, [integer(1, ?OWNERS)]},
        {1, finish, []},
        {1, reset, []},
        {4, drain, []},
        {1, stop, []},
        {1, abort, []}
    ],
    frequency(
        [{2, Open} || Count < ?STREAMS] ++ [{1, Kill}] ++
            [
                {Weight, {call, ?MODULE, Command, [?ENV, oneof(Keys) | Arguments]}}
             || {Weight, Command, Arguments} <- OfTips,
                Keys <- [possible(Command, Model)],
                Keys =/= []
            ]
    ).

%% The ends with which this can be done.
possible(Command, #model{tips = Tips} = Model) ->
    [Key || Key <- maps:keys(Tips), precondition(Model, {call, ?MODULE, Command, [?ENV, Key]})].

precondition(#model{tips = Tips}, {call, _, open, [_, Number, _]}) ->
    Number =< ?STREAMS andalso Number =:= map_size(Tips) div 2 + 1;
precondition(_Model, {call, _, kill, _}) ->
    true;
precondition(Model, {call, _, Command, [_, Key | _]}) ->
    case Model#model.tips of
        #{Key := #tip{owner = dead}} -> false;
        #{Key := Tip} -> is_possible(Command, Tip, comes(Key, Model));
        #{} -> false
    end.

is_possible(send, #tip{sending = Sending}, _Comes) -> Sending =:= open;
is_possible(send_finished, #tip{sending = Sending}, _Comes) -> Sending =:= finished;
is_possible(finish, #tip{sending = Sending}, _Comes) -> Sending =:= open;
is_possible(reset, #tip{sending = Sending}, _Comes) -> Sending =:= open;
is_possible(stop, #tip{reading = Reading}, Comes) -> Reading =:= open andalso Comes =/= some;
is_possible(abort, Tip, Comes) ->
    is_possible(reset, Tip, Comes) andalso is_possible(stop, Tip, Comes);
is_possible(recv, _Tip, Comes) -> lists:member(Comes, [frame, the_end]);
is_possible(recv_nothing, _Tip, Comes) -> Comes =:= nothing;
is_possible(drain, _Tip, Comes) -> Comes =:= some;
is_possible(_Command, _Tip, _Comes) -> true.

%% What comes next to this end; `some': of the frames that were given up, none or some, and then
%% word of that.
comes({Number, Side} = Key, #model{tips = Tips}) ->
    #tip{coming = Coming, reading = Reading} = maps:get(Key, Tips),
    #tip{owner = Owner, sending = Sending} = maps:get({Number, other(Side)}, Tips),
    HasEnd = Owner =:= dead orelse Sending =:= finished,
    case Coming of
        _ when Reading =:= stopped -> the_end;
        _ when Sending =:= reset -> some;
        [_ | _] -> frame;
        [] when HasEnd -> the_end;
        [] -> nothing
    end.

other(near) -> far;
other(far) -> near.

postcondition(_Model, {call, _, send_finished, _}, Result) ->
    Result =:= {error, closed};
postcondition(_Model, {call, _, recv_nothing, _}, Result) ->
    Result =:= {error, timeout};
postcondition(Model, {call, _, recv, [_, Key]}, Result) ->
    #tip{coming = Coming} = maps:get(Key, Model#model.tips),
    Expected = maps:get(comes(Key, Model), #{frame => ok, the_end => error}),
    Result =:= {Expected, hd(Coming ++ [closed])};
postcondition(Model, {call, _, drain, [_, Key]}, {Frames, End}) ->
    #tip{coming = Coming} = maps:get(Key, Model#model.tips),
    lists:prefix(Frames, Coming) andalso End =:= {error, {peer_send_aborted, ?CODE}};
postcondition(Model, {call, _, mode, [_, Key, _]}, Result) ->
    #tip{reading = Reading} = maps:get(Key, Model#model.tips),
    Result =:= maps:get(Reading, #{open => ok, stopped => {error, closed}});
postcondition(_Model, _Call, Result) ->
    Result =:= ok.

next_state(#model{tips = Tips} = Model, _Result, {call, _, open, [_, Number, _]}) ->
    New = #{{Number, near} => #tip{owner = 1}, {Number, far} => #tip{owner = 1}},
    Model#model{tips = maps:merge(Tips, New)};
next_state(#model{sent = Sent} = Model, _Result, {call, _, send, [_, {Number, Side}, _]}) ->
    To = {Number, other(Side)},
    Add = fun(#tip{coming = Coming} = Tip) -> Tip#tip{coming = Coming ++ [Sent + 1]} end,
    change(To, Add, Model#model{sent = Sent + 1});
next_state(Model, _Result, {call, _, recv, [_, Key]}) ->
    change(Key, fun(#tip{coming = Coming} = Tip) -> Tip#tip{coming = rest(Coming)} end, Model);
next_state(Model, _Result, {call, _, give, [_, Key, Owner]}) ->
    change(Key, fun(Tip) -> Tip#tip{owner = Owner} end, Model);
next_state(Model, _Result, {call, _, finish, [_, Key]}) ->
    change(Key, fun(Tip) -> Tip#tip{sending = finished} end, Model);
next_state(Model, _Result, {call, _, reset, [_, Key]}) ->
    change(Key, fun(Tip) -> Tip#tip{sending = reset} end, Model);
next_state(Model, _Result, {call, _, drain, [_, Key]}) ->
    change(Key, fun(Tip) -> Tip#tip{coming = []} end, Model);
next_state(Model, _Result, {call, _, stop, [_, {Number, Side} = Key]}) ->
    Stopped = change(Key, fun(Tip) -> Tip#tip{reading = stopped, coming = []} end, Model),
    change({Number, other(Side)}, fun refuse/1, Stopped);
next_state(Model, Result, {call, _, abort, Arguments}) ->
    Reset = next_state(Model, Result, {call, ?MODULE, reset, Arguments}),
    next_state(Reset, Result, {call, ?MODULE, stop, Arguments});
next_state(#model{tips = Tips} = Model, _Result, {call, _, kill, [_, Owner]}) ->
    Dead = [Key || {Key, #tip{owner = Of}} <- maps:to_list(Tips), Of =:= Owner],
    lists:foldl(fun die/2, Model, Dead);
next_state(Model, _Result, _Call) ->
    Model.

%% What this end had queued still goes out; what is sent to it is refused, sooner or later.
die({Number, Side} = Key, Model) ->
    Dead = change(Key, fun(Tip) -> Tip#tip{owner = dead, coming = []} end, Model),
    change({Number, other(Side)}, fun refuse/1, Dead).

refuse(#tip{sending = open} = Tip) -> Tip#tip{sending = refused};
refuse(Tip) -> Tip.

change(Key, Change, #model{tips = Tips} = Model) ->
    Model#model{tips = maps:update_with(Key, Change, Tips)}.

rest([]) -> [];
rest([_ | Rest]) -> Rest.

%%% The commands, carried out

%% A stream begins with its first bytes, so one frame has passed.
open(#{client := Client, server := Server} = Env, Number, Opener) ->
    {From, To} = maps:get(Opener, #{client => {Client, Server}, server => {Server, Client}}),
    {ok, Near} = macula_quic:open_stream(From),
    ok = macula_quic:send(Near, frame(0, 0)),
    {ok, Far} = macula_quic:accept_stream(To, ?DEADLINE_MS),
    {ok, <<1, 0, _/binary>>} = macula_quic:recv(Far, ?DEADLINE_MS),
    _ = put({?MODULE, sent}, sent(0)),
    lists:foreach(
        fun({Side, Stream}) ->
            _ = put({?MODULE, stream, {Number, Side}}, Stream),
            ok = macula_quic:controlling_process(Stream, owner(Env, 1)),
            _ = put({?MODULE, owner, {Number, Side}}, 1)
        end,
        [{near, Near}, {far, Far}]
    ).

send(_Env, Key, Size) ->
    _ = put({?MODULE, sent}, sent(1)),
    macula_quic:send(stream(Key), frame(sent(0), Size)).

send_finished(_Env, Key) -> macula_quic:send(stream(Key), <<"late">>).

recv(Env, Key) -> read(Env, Key, ?DEADLINE_MS).

recv_nothing(Env, Key) -> read(Env, Key, ?SILENCE_MS).

mode(_Env, Key, IsActive) -> macula_quic:setopt(stream(Key), active, IsActive).

give(Env, Key, Owner) ->
    {Stream, To} = {stream(Key), owner(Env, Owner)},
    Former = owner(Env, get({?MODULE, owner, Key})),
    _ = put({?MODULE, owner, Key}, Owner),
    quic_ct:in(Former, fun() -> macula_quic:controlling_process(Stream, To) end).

finish(_Env, Key) -> shut(Key, ?GRACEFUL).

reset(_Env, Key) -> shut(Key, ?ABORT_SEND).

stop(_Env, Key) -> shut(Key, ?ABORT_RECEIVE).

abort(_Env, Key) -> shut(Key, ?IMMEDIATE).

shut(Key, Flag) -> macula_quic:async_shutdown_stream(stream(Key), Flag, ?CODE).

drain(Env, Key) -> drain(Env, Key, []).

drain(Env, Key, Frames) ->
    case recv(Env, Key) of
        {ok, Frame} -> drain(Env, Key, [Frame | Frames]);
        End -> {lists:reverse(Frames), End}
    end.

%% Another one takes its place, with nothing.
kill(Env, Owner) ->
    ok = quic_ct:give_up(owner(Env, Owner)),
    _ = put({?MODULE, agent, Owner}, quic_ct:agent()),
    ok.

read(Env, Key, Ms) ->
    Stream = stream(Key),
    Work = fun() -> macula_quic:recv(Stream, Ms) end,
    case quic_ct:in(owner(Env, get({?MODULE, owner, Key})), Work) of
        {ok, <<1, 0, 0, 0, _:32, Frame:64, Filling/binary>>} ->
            Filling = filling(Frame, byte_size(Filling)),
            {ok, Frame};
        Other ->
            Other
    end.

%% What is still on its way when all commands are done, and does not come.
left(Env, #model{tips = Tips} = Model, ok) ->
    [
        {Key, Frame}
     || {Key, #tip{owner = Owner, coming = Coming}} <- maps:to_list(Tips),
        Owner =/= dead,
        comes(Key, Model) =:= frame,
        Frame <- Coming,
        recv(Env, Key) =/= {ok, Frame}
    ];
left(_Env, _Model, _Failed) ->
    not_looked_for.

set_up() ->
    [erase(Key) || {Key, _} <- get(), is_tuple(Key), element(1, Key) =:= ?MODULE],
    _ = put({?MODULE, sent}, 0),
    [put({?MODULE, agent, N}, quic_ct:agent()) || N <- lists:seq(1, ?OWNERS)],
    Listener = quic_ct:listen(),
    Client = quic_ct:connect(Listener),
    #{listener => Listener, client => Client, server => quic_ct:new_server(Listener)}.

tear_down(#{listener := Listener, client := Client} = Env) ->
    ok = macula_quic:close(Client),
    ok = macula_quic:close(Listener),
    [ok = quic_ct:give_up(owner(Env, N)) || N <- lists:seq(1, ?OWNERS)],
    ok = quic_ct:forget().

stream(Key) -> get({?MODULE, stream, Key}).

owner(_Env, Number) -> get({?MODULE, agent, Number}).

sent(More) -> get({?MODULE, sent}) + More.

frame(Number, Size) ->
    Filling = filling(Number, Size),
    <<1, 0, 0, 0, (8 + Size):32, Number:64, Filling/binary>>.

filling(Number, Size) -> binary:copy(<<Number>>, Size).
