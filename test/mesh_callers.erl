%%% What the campaigns run in the other VM: callers that send numbered frames by every way there is
%%% and keep what they were told, callers that die in a call, a watch on the pool's size, and a node
%%% that listens.
-module(mesh_callers).

-export([start/4, stop/0, kill/1, reach/3, latency_us/2]).
-export([listen/4, renew/0, connections/0]).

-define(POOL, macula_gateway_mesh).
-define(CONFIRMED, ?MODULE).
-define(REFUSED, mesh_callers_refused).
-define(GIVEN, mesh_callers_given).
-define(UNSENT, mesh_callers_unsent).
-define(NODE, mesh_callers_node).
%% The payloads: a packet's worth, several packets', and what travels on a stream of its own.
-define(SIZES, [8, 200, 1_000, 4_000, 20_000, 100_000]).
%% What two of may not wait at one node, if the pool's watermark is as low as that of campaigns.
-define(LARGE, 100_000).
%% Between two sends of one caller, so that a campaign's messages stay countable.
-define(PAUSE_MS, 3).
-define(CONFIRM_MS, 20_000).
%% Looks at a caller that is to die in its call, each a millisecond after the other, and how many
%% callers at most live for that: the node of one may be away.
-define(LOOKS, 200).
-define(LIVES, 20).
%% How many messages to a node that is there may fail, a pause between them, before one does not.
-define(ATTEMPTS, 50).
-define(ATTEMPT_PAUSE_MS, 100).

%%% Callers

%% `Count' callers of these nodes, `[{NodeId, Address}]', whose frames are numbered from `First'.
%% `keeps': whether it is kept what became of which message, which takes memory for each;
%% `confirm_ms': how long `send/5' may take.
start(Targets, Count, First, #{keeps := Keeps, confirm_ms := Ms}) ->
    Self = self(),
    Owner = spawn(fun() -> own(Self, Targets, Count, First, Keeps, Ms) end),
    receive
        {Owner, started} -> ok
    end.

%% Ends all callers in order. How many messages were given to the pool, the next number, what
%% `send/5' refused (`[{{NodeId, Why}, Count}]'), in which calls callers died, how many messages may
%% count or not since their callers died, and how large the pool ever was. Where it is kept: which
%% frames were given and which confirmed, and when (`[{Number, NodeId, Ms}]'), and of which `send/5'
%% said that nothing was sent (`[{Number, NodeId, Why}]').
stop() ->
    Monitor = monitor(process, ?MODULE),
    ?MODULE ! {stop, self()},
    receive
        {?MODULE, Report} ->
            _ = demonitor(Monitor, [flush]),
            Report;
        {'DOWN', Monitor, process, _, Reason} ->
            error(Reason)
    end.

%% Kills a caller that waits: for a connection (`connection'), in `send/5' (`confirmed'), or for
%% room in `send/2' (`stream').
kill(Way) ->
    ?MODULE ! {kill, Way},
    ok.

%% Sends to a node that is there, by `send/5', until the first message is confirmed, then `Count'
%% more. The next number, those that were confirmed and those that were not sent as stop/0 tells
%% them, and what became of the messages after the first one.
reach(Target, Count, First) -> reach(Target, Count, First, ?ATTEMPTS, []).

reach({NodeId, _}, _Count, _Number, 0, Unsent) ->
    error({never_reached, NodeId, Unsent});
reach({NodeId, _} = Target, Count, Number, Attempts, Unsent) ->
    case confirm(Target, Number) of
        {ok, Kept} ->
            More = [confirm(Target, Number + N) || N <- lists:seq(1, Count)],
            #{
                next => Number + Count + 1,
                confirmed => [Kept | [Each || {ok, Each} <- More]],
                unsent => Unsent,
                told => lists:usort([Outcome || {Outcome, _} <- More])
            };
        {{error, Reason}, _} ->
            timer:sleep(?ATTEMPT_PAUSE_MS),
            Now = [{Number, NodeId, Reason} || is_unsent(Reason)],
            reach(Target, Count, Number + 1, Attempts - 1, Now ++ Unsent)
    end.

confirm({NodeId, Address}, Number) ->
    Told = ?POOL:send(?POOL, NodeId, Address, mesh_peer:frame(Number, 200), ?CONFIRM_MS),
    {Told, {Number, NodeId, erlang:system_time(millisecond)}}.

%% How long a confirmed message takes, the median of `Count', all of which have to be.
latency_us({NodeId, Address}, Count) ->
    Frame = <<1, 1, 0, 0, 7:32, "a probe">>,
    Send = fun() -> ok = ?POOL:send(?POOL, NodeId, Address, Frame, ?CONFIRM_MS) end,
    Times = [element(1, timer:tc(Send)) || _ <- lists:seq(1, Count)],
    lists:nth((Count + 1) div 2, lists:sort(Times)).

own(Starter, Targets, Count, First, Keeps, Ms) ->
    true = register(?MODULE, self()),
    %% A VM without file descriptors loads nothing.
    {module, timer} = code:ensure_loaded(timer),
    Options = [named_table, public, {write_concurrency, true}],
    _ = [ets:new(Table, Options) || Table <- [?CONFIRMED, ?REFUSED, ?GIVEN, ?UNSENT]],
    Numbers = atomics:new(3, []),
    ok = atomics:put(Numbers, 1, First - 1),
    Load = #{targets => Targets, numbers => Numbers, keeps => Keeps, confirm_ms => Ms},
    Callers = [spawn_monitor(fun() -> call(Load) end) || _ <- lists:seq(1, Count)],
    Watch = spawn(fun() -> watch_size(0) end),
    Starter ! {self(), started},
    attend(Load, Callers, Watch, []).

attend(#{numbers := Numbers} = Load, Callers, Watch, Killed) ->
    receive
        {kill, Way} ->
            attend(Load, Callers, Watch, kill_in_call(Way, Load, ?LIVES) ++ Killed);
        {stop, From} ->
            [Caller ! stop || {Caller, _} <- Callers],
            Ends = [
                receive
                    {'DOWN', Monitor, process, _, Reason} -> Reason
                end
             || {_, Monitor} <- Callers
            ],
            Largest = largest(Watch),
            From !
                {?MODULE, #{
                    given => atomics:get(Numbers, 2),
                    given_to => ets:tab2list(?GIVEN),
                    next => atomics:get(Numbers, 1) + 1,
                    confirmed => ets:tab2list(?CONFIRMED),
                    refused => ets:tab2list(?REFUSED),
                    unsent => ets:tab2list(?UNSENT),
                    killed => Killed,
                    uncertain => atomics:get(Numbers, 3),
                    largest => Largest,
                    ends => lists:usort(Ends)
                }}
    end.

call(#{targets := Targets} = Load) ->
    receive
        stop -> ok
    after ?PAUSE_MS ->
        _ = send(way(rand:uniform(10)), pick(Targets), pick(?SIZES), Load),
        call(Load)
    end.

way(N) when N =< 4 -> asynchronous;
way(N) when N =< 8 -> confirmed;
way(_N) -> stream.

%% Counts the messages that the pool has to account for, and keeps what the caller was told.
send(asynchronous, {NodeId, Address}, Size, Load) ->
    {Number, Frame} = frame(Size, Load),
    given(Number, NodeId, Load),
    ?POOL:send_async(?POOL, NodeId, Address, Frame);
send(confirmed, {NodeId, Address}, Size, #{confirm_ms := Ms} = Load) ->
    {Number, Frame} = frame(Size, Load),
    given(Number, NodeId, Load),
    try ?POOL:send(?POOL, NodeId, Address, Frame, Ms) of
        ok -> confirmed(Number, NodeId, Load);
        {error, Reason} -> refused(Number, NodeId, Reason, Load)
    catch
        %% The server is being restarted.
        exit:_ -> refused(Number, NodeId, exit, Load)
    end;
send(stream, {NodeId, _} = Target, Size, Load) ->
    case connect(Target) of
        {ok, Stream} ->
            {Number, Frame} = frame(Size, Load),
            macula_quic:send(Stream, Frame) =:= ok andalso given(Number, NodeId, Load);
        none ->
            none
    end;
send(connection, Target, _Size, _Load) ->
    connect(Target).

connect({NodeId, Address}) ->
    try ?POOL:get_or_create_connection(?POOL, NodeId, Address) of
        {ok, Stream} -> {ok, Stream};
        {error, _} -> none
    catch
        exit:_ -> none
    end.

frame(Size, #{numbers := Numbers}) ->
    Number = atomics:add_get(Numbers, 1, 1),
    {Number, mesh_peer:frame(Number, Size)}.

given(Number, NodeId, #{numbers := Numbers} = Load) ->
    atomics:add(Numbers, 2, 1),
    keep(?GIVEN, {Number, NodeId, erlang:system_time(millisecond)}, Load).

confirmed(Number, NodeId, Load) ->
    keep(?CONFIRMED, {Number, NodeId, erlang:system_time(millisecond)}, Load).

refused(Number, NodeId, Reason, Load) ->
    Key = {NodeId, Reason},
    _ = ets:update_counter(?REFUSED, Key, 1, {Key, 0}),
    is_unsent(Reason) andalso keep(?UNSENT, {Number, NodeId, Reason}, Load).

%% Who called a server that died knows nothing.
is_unsent({unconfirmed, _}) -> false;
is_unsent(exit) -> false;
is_unsent(_Reason) -> true.

keep(Table, Row, #{keeps := Keeps}) -> not Keeps orelse ets:insert(Table, Row).

%% `[Way]' if one died in this call. Whether the last message of one counts, nobody knows.
kill_in_call(_Way, _Load, 0) ->
    [];
kill_in_call(Way, #{targets := Targets, numbers := Numbers} = Load, Lives) ->
    _ = Way =:= connection orelse atomics:add(Numbers, 3, 1),
    Life = targets(Way, Targets),
    {Caller, Monitor} = spawn_monitor(fun() -> call_for_ever(Way, Load#{targets := Life}) end),
    IsWaiting = is_waiting(Way, Caller, ?LOOKS),
    exit(Caller, kill),
    receive
        {'DOWN', Monitor, process, Caller, Reason} -> killed = Reason
    end,
    case IsWaiting of
        true -> [Way];
        false -> kill_in_call(Way, Load, Lives - 1)
    end.

%% One node's room is filled, and connections to many are evicted.
targets(stream, Targets) -> [pick(Targets)];
targets(_Way, Targets) -> Targets.

call_for_ever(Way, #{targets := Targets} = Load) ->
    _ = send(Way, pick(Targets), ?LARGE, Load),
    call_for_ever(Way, Load).

is_waiting(_Way, _Caller, 0) ->
    false;
is_waiting(Way, Caller, Looks) ->
    Module = waits_in(Way),
    case process_info(Caller, [status, current_function]) of
        [{status, waiting}, {current_function, {Module, _, _}}] ->
            true;
        _ ->
            timer:sleep(1),
            is_waiting(Way, Caller, Looks - 1)
    end.

waits_in(connection) -> gen;
waits_in(confirmed) -> ?POOL;
waits_in(stream) -> macula_quic.

largest(Watch) ->
    Watch ! {stop, self()},
    receive
        {Watch, Largest} -> Largest
    end.

watch_size(Largest) ->
    receive
        {stop, From} -> From ! {self(), Largest}
    after 2 ->
        try ?POOL:pool_size(?POOL) of
            Size -> watch_size(max(Size, Largest))
        catch
            exit:_ -> watch_size(Largest)
        end
    end.

pick(List) -> lists:nth(rand:uniform(length(List)), List).

%%% A node that listens: on `macula-mesh/1', which the peers of other programs do not speak

%% The port it listens at, any if that is 0. Each frame's number is appended to the file `Log', as
%% peers do.
listen(Port, {CertFile, KeyFile}, Log, More) ->
    Self = self(),
    Options = [{certfile, CertFile}, {keyfile, KeyFile} | maps:to_list(More)],
    {Node, Monitor} = spawn_monitor(fun() -> begin_node(Self, Port, Options, Log) end),
    receive
        {Node, Bound} ->
            true = demonitor(Monitor, [flush]),
            Bound;
        {'DOWN', Monitor, process, Node, Reason} ->
            error(Reason)
    end.

%% The listener reads its certificate anew.
renew() ->
    ?NODE ! {renew, self()},
    receive
        {?NODE, Outcome} -> Outcome
    end.

%% How many the listener has.
connections() ->
    ?NODE ! {connections, self()},
    receive
        {?NODE, Count} -> Count
    end.

begin_node(Starter, Port, Options, Log) ->
    true = register(?NODE, self()),
    %% As above.
    {module, mesh_peer} = code:ensure_loaded(mesh_peer),
    {ok, Listener} = macula_quic:listen({{127, 0, 0, 1}, Port}, Options),
    {ok, Listener} = macula_quic:async_accept(Listener, #{}),
    {ok, {_, Bound}} = macula_quic:sockname(Listener),
    {ok, File} = file:open(Log, [append, raw]),
    Starter ! {self(), Bound},
    serve(Listener, File).

serve(Listener, File) ->
    receive
        {quic, new_conn, Connection, _} ->
            _ = macula_quic:handshake(Connection),
            _ = macula_quic:async_accept_stream(Connection, #{}),
            _ = macula_quic:async_accept(Listener, #{});
        {quic, new_stream, Stream, #{conn := Connection}} ->
            _ = macula_quic:async_accept_stream(Connection, #{}),
            _ = macula_quic:setopt(Stream, packet, macula),
            _ = macula_quic:setopt(Stream, active, true);
        {quic, Data, _Stream, _} when is_binary(Data) ->
            ok = file:write(File, [line(Data), $\n]);
        {renew, From} ->
            From ! {?NODE, macula_quic:reload_certificates(Listener)};
        {connections, From} ->
            From ! {?NODE, maps:get(connections, macula_quic:listener_stats(Listener))};
        {quic, _What, _Handle, _Detail} ->
            ok
    end,
    serve(Listener, File).

line(<<1, 1, 0, 0, Size:32, Number:64, _/binary>> = Data) when Size >= 8 ->
    case mesh_peer:frame(Number, Size) of
        Data -> integer_to_binary(Number);
        _ -> <<"corrupt">>
    end;
line(_Other) ->
    <<"corrupt">>.
