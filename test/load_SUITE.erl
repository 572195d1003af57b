%%% The pool under load, towards peers of every kind: nothing is lost, nothing is exceeded, and no
%%% one pays for another's peer.
-module(load_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0]).
-export([
    every_message_to_each_of_50_peers_arrives_once_whole_on_its_own_stream/1,
    dials_to_silent_peers_hold_up_no_other_caller/1,
    the_bound_holds_under_concurrent_callers/1,
    what_was_just_used_is_never_the_victim/1,
    the_least_recently_used_goes_first/1,
    an_idle_connection_goes_before_a_busy_one/1,
    all_waiters_of_a_slow_dial_get_its_one_stream/1,
    all_waiters_of_a_failing_dial_get_its_one_error/1,
    all_waiters_are_answered_before_a_server_that_stops_is_gone/1,
    a_waiter_that_dies_or_times_out_disturbs_no_one/1,
    a_peer_that_hoards_credits_gets_every_message/1,
    a_peer_that_grants_no_stream_is_not_dialled_over_and_over/1,
    messages_wait_for_no_stream_that_a_user_holds/1,
    a_slow_peer_holds_up_only_its_own_queue/1,
    a_peer_s_queue_is_bounded_in_messages/1,
    a_peer_s_queue_is_bounded_in_bytes/1,
    all_queues_together_are_bounded_in_messages/1,
    all_queues_together_are_bounded_in_bytes/1,
    messages_that_find_no_room_dial_nobody/1,
    every_accepted_message_is_accounted_for/1,
    peers_are_spread_over_several_sockets/1,
    a_failed_dial_evicts_nobody/1,
    an_evicted_connection_delivers_its_queue_before_it_closes/1
]).
-export([stop_with_waiters/2]).

-define(POOL, macula_gateway_mesh).
%% Connections of one peer that linger once they have been replaced, at most.
-define(LINGERING, 64).

suite() -> [{timetrap, {minutes, 2}}].

all() ->
    [
        every_message_to_each_of_50_peers_arrives_once_whole_on_its_own_stream,
        dials_to_silent_peers_hold_up_no_other_caller,
        the_bound_holds_under_concurrent_callers,
        what_was_just_used_is_never_the_victim,
        the_least_recently_used_goes_first,
        an_idle_connection_goes_before_a_busy_one,
        all_waiters_of_a_slow_dial_get_its_one_stream,
        all_waiters_of_a_failing_dial_get_its_one_error,
        all_waiters_are_answered_before_a_server_that_stops_is_gone,
        a_waiter_that_dies_or_times_out_disturbs_no_one,
        a_peer_that_hoards_credits_gets_every_message,
        a_peer_that_grants_no_stream_is_not_dialled_over_and_over,
        messages_wait_for_no_stream_that_a_user_holds,
        a_slow_peer_holds_up_only_its_own_queue,
        a_peer_s_queue_is_bounded_in_messages,
        a_peer_s_queue_is_bounded_in_bytes,
        all_queues_together_are_bounded_in_messages,
        all_queues_together_are_bounded_in_bytes,
        messages_that_find_no_room_dial_nobody,
        every_accepted_message_is_accounted_for,
        peers_are_spread_over_several_sockets,
        a_failed_dial_evicts_nobody,
        an_evicted_connection_delivers_its_queue_before_it_closes
    ].

every_message_to_each_of_50_peers_arrives_once_whole_on_its_own_stream(_Config) ->
    %% The pool's reason to be: a node that publishes to its whole mesh must lose nothing, and a
    %% receiver in the field loses what shares a stream.
    Count = 10_000,
    Frames = [mesh_peer:frame(Index, 8 + Index rem 200) || Index <- lists:seq(0, Count - 1)],
    Send = fun(Pool, Number, Peer) ->
        NodeId = mesh_peer:node_id(Number),
        Address = mesh_peer:address(Peer),
        lists:foreach(fun(Frame) -> ok = ?POOL:send_async(Pool, NodeId, Address, Frame) end, Frames)
    end,
    mesh_ct:with(#{connect_timeout_ms => 30_000}, lists:duplicate(50, []), fun(Pool, Peers) ->
        Numbered = lists:zip(lists:seq(1, 50), Peers),
        _ = mesh_load:concurrently([fun() -> Send(Pool, N, Peer) end || {N, Peer} <- Numbered]),
        lists:foreach(fun(Peer) -> mesh_peer:wait(Peer, messages, Count, 55_000) end, Peers),
        Stats = mesh_load:assert_accounted(Pool, 500_000),
        ?assertMatch(
            #{messages_delivered := 500_000, messages_dropped := None, size := 50} when
                None =:= #{},
            Stats
        ),
        lists:foreach(fun(Peer) -> assert_got_all(Peer, Count) end, Peers)
    end).

dials_to_silent_peers_hold_up_no_other_caller(_Config) ->
    %% In the original one peer that does not answer stops the whole node for five seconds.
    Options = #{connect_timeout_ms => 60_000},
    mesh_ct:with(Options, [[], []], fun(Pool, [Peer, Fresh]) ->
        Address = mesh_peer:address(Peer),
        {ok, Stream} = ?POOL:get_or_create_connection(Pool, <<"pooled">>, Address),
        Silent = [{mesh_peer:node_id(N), mesh_peer:silent()} || N <- lists:seq(1, 100)],
        lists:foreach(fun({NodeId, Nobody}) -> dial(Pool, NodeId, Nobody) end, Silent),
        mesh_load:eventually(100, fun() -> mesh_ct:stat(Pool, dialing) end),
        {ok, _} = ?POOL:get_or_create_connection(Pool, <<"fresh">>, mesh_peer:address(Fresh)),
        Request = {get_or_create_connection, <<"pooled">>, Address},
        Caller = fun() ->
            lists:foreach(
                fun(_) ->
                    {ok, Stream} = ?POOL:get_or_create_connection(Pool, <<"pooled">>, Address),
                    {ok, Stream} = gen_server:call(Pool, Request),
                    ok = macula_quic:send(Stream, <<"by the stream">>),
                    ok = ?POOL:send_async(Pool, <<"pooled">>, Address, <<"by the pool">>)
                end,
                lists:seq(1, 200)
            )
        end,
        _ = mesh_load:concurrently(lists:duplicate(8, Caller)),
        ?assertMatch(#{messages := 3_200}, mesh_peer:wait(Peer, messages, 3_200)),
        ?assertEqual(100, mesh_ct:stat(Pool, dialing))
    end).

the_bound_holds_under_concurrent_callers(_Config) ->
    %% A node that meets more peers than it may keep must neither exceed its memory nor leave
    %% connections open behind the pool's back, as the original does.
    Options = #{max_mesh_connections => 100, connect_timeout_ms => 9_000},
    mesh_ct:with(Options, lists:duplicate(4, []), fun(Pool, Peers) ->
        Addresses = list_to_tuple([mesh_peer:address(Peer) || Peer <- Peers]),
        Call = fun(N) ->
            Address = element(N rem 4 + 1, Addresses),
            {ok, _} = ?POOL:get_or_create_connection(Pool, mesh_peer:node_id(N), Address)
        end,
        Callers = [
            fun() -> lists:foreach(Call, lists:seq(First, 5_000, 64)) end
         || First <- lists:seq(1, 64)
        ],
        Size = fun() -> ?POOL:pool_size(Pool) end,
        {Largest, _} = mesh_load:largest_during(Size, fun() -> mesh_load:concurrently(Callers) end),
        ?assertEqual(100, Largest),
        ?assertEqual(100, ?POOL:pool_size(Pool)),
        ?assertEqual(100, length(mesh_ct:nodes(Pool))),
        {ok, Stats} = ?POOL:get_stats(Pool),
        ?assertMatch(#{connections_opened := 5_000, evictions := 4_900, dialing := 0}, Stats),
        mesh_load:await_peers(Peers, connections_closed, 4_900),
        mesh_load:await_peers(Peers, connections_open, 100),
        [?assertMatch(#{closed_by_timeout := 0}, mesh_peer:stats(Peer)) || Peer <- Peers],
        ?assertMatch({ok, #{closes := #{evicted := 4_900}}}, ?POOL:get_stats(Pool))
    end).

what_was_just_used_is_never_the_victim(_Config) ->
    %% Were a connection in use evicted, a busy mesh would only dial. 64 in use and 36 newcomers
    %% are the limit: whatever the callers' order, the newcomers can only replace each other.
    Options = #{max_mesh_connections => 100, connect_timeout_ms => 9_000},
    mesh_ct:with(Options, [[], []], fun(Pool, [One, Two]) ->
        Get = fun(N, Peer) ->
            NodeId = mesh_peer:node_id(N),
            {ok, Stream} = ?POOL:get_or_create_connection(Pool, NodeId, mesh_peer:address(Peer)),
            Stream
        end,
        Use = fun() ->
            mesh_load:concurrently([fun() -> Get(N, One) end || N <- lists:seq(1, 64)])
        end,
        Streams = Use(),
        lists:foreach(
            fun(Round) ->
                Newcomers = [1_000 * Round + N || N <- lists:seq(1, 36)],
                _ = mesh_load:concurrently([fun() -> Get(N, Two) end || N <- Newcomers]),
                ?assertEqual(Streams, Use())
            end,
            lists:seq(1, 8)
        ),
        ?assertMatch(#{connections_open := 64}, mesh_peer:wait(One, connections_opened, 64)),
        ?assertEqual(7 * 36, mesh_ct:stat(Pool, evictions))
    end).

the_least_recently_used_goes_first(_Config) ->
    %% The order of use is exact, unlike the original's, which knows only whole seconds.
    Seed = mesh_load:seed(),
    mesh_ct:with(#{max_mesh_connections => 20}, [[]], fun(Pool, [Peer]) ->
        Address = mesh_peer:address(Peer),
        Steps = [lists:nth(rand:uniform(3), [get, send, new]) || _ <- lists:seq(1, 150)],
        Use = fun(Step, Order) ->
            NodeId = pick(Step, Order),
            ok = use(Step, Pool, NodeId, Address),
            Next = lists:sublist([NodeId | lists:delete(NodeId, Order)], 20),
            ?assertEqual({Seed, Next}, {Seed, mesh_ct:nodes(Pool)}),
            Next
        end,
        _ = lists:foldl(Use, [], lists:duplicate(20, new) ++ Steps),
        ?assertEqual(length([new || new <- Steps]), mesh_ct:stat(Pool, evictions))
    end).

an_idle_connection_goes_before_a_busy_one(_Config) ->
    %% Evicting a connection in the middle of a transfer would cost more than any other.
    mesh_ct:with(#{max_mesh_connections => 3}, [[]], fun(Pool, [Peer]) ->
        Address = mesh_peer:address(Peer),
        New = fun(NodeId) ->
            {ok, _} = ?POOL:get_or_create_connection(Pool, NodeId, Address),
            mesh_ct:nodes(Pool)
        end,
        _ = New(<<"oldest">>),
        {ok, #{connection := Connection}} = ?POOL:get_connection_info(Pool, <<"oldest">>),
        {ok, Stream} = macula_quic:open_stream(Connection),
        ?assertMatch({ok, #{state := busy}}, ?POOL:get_connection_info(Pool, <<"oldest">>)),
        _ = New(<<"second">>),
        _ = New(<<"third">>),
        ?assertEqual([<<"fourth">>, <<"third">>, <<"oldest">>], New(<<"fourth">>)),
        ok = macula_quic:close(Stream),
        State = fun() ->
            {ok, #{state := State}} = ?POOL:get_connection_info(Pool, <<"oldest">>),
            State
        end,
        mesh_load:eventually(idle, State),
        ?assertEqual([<<"fifth">>, <<"fourth">>, <<"third">>], New(<<"fifth">>))
    end).

all_waiters_of_a_slow_dial_get_its_one_stream(_Config) ->
    %% A node that many callers want at once must be dialled once, or the mesh floods itself. The
    %% peer stands still until all of them wait, so no caller comes too late to be a waiter.
    mesh_ct:with(#{connect_timeout_ms => 30_000}, [[]], fun(Pool, [Peer]) ->
        ok = mesh_peer:pause(Peer),
        Waiters = waiters(500, Pool, <<"slow">>, mesh_peer:address(Peer)),
        mesh_load:eventually(500, fun() -> mesh_ct:stat(Pool, misses) end),
        ok = mesh_peer:resume(Peer),
        [{ok, Stream}] = lists:usort(outcomes(Waiters)),
        ?assertMatch({ok, #{stream := Stream}}, ?POOL:get_connection_info(Pool, <<"slow">>)),
        ?assertMatch({ok, #{dials := 1, connections_opened := 1}}, ?POOL:get_stats(Pool)),
        ?assertMatch(#{connections_opened := 1}, mesh_peer:wait(Peer, connections_opened, 1))
    end).

all_waiters_of_a_failing_dial_get_its_one_error(_Config) ->
    %% Were the failure told to the first waiter only, the others would hang until their timeout.
    Args = ["--mode", "refuse"],
    mesh_ct:with(#{connect_timeout_ms => 30_000}, [Args], fun(Pool, [Peer]) ->
        ok = mesh_peer:pause(Peer),
        Waiters = waiters(500, Pool, <<"refused">>, mesh_peer:address(Peer)),
        mesh_load:eventually(500, fun() -> mesh_ct:stat(Pool, misses) end),
        ok = mesh_peer:resume(Peer),
        ?assertEqual([{error, {connect_failed, refused}}], lists:usort(outcomes(Waiters))),
        Failures = #{refused => 1},
        ?assertMatch(
            {ok, #{dials := 1, dial_failures := Failures, dialing := 0, size := 0}},
            ?POOL:get_stats(Pool)
        )
    end).

all_waiters_are_answered_before_a_server_that_stops_is_gone(_Config) ->
    %% A caller that exits with its server cannot tell a node that goes down from a defect. In a VM
    %% of its own, for threads that can overtake each other.
    Address = mesh_peer:silent(),
    mesh_vm:with(fun(Vm) ->
        lists:foreach(
            fun(_) ->
                Answers = mesh_vm:call(Vm, ?MODULE, stop_with_waiters, [Address, 1_000]),
                ?assertEqual([{error, {connect_failed, pool_closed}}], lists:usort(Answers))
            end,
            lists:seq(1, 5)
        )
    end).

%% In the other VM: what so many callers get whose server stops while it dials for them.
stop_with_waiters(Address, Count) ->
    {ok, Pool} = ?POOL:start_link(#{runtime_workers => 8, linger_ms => 100}),
    Self = self(),
    Ask = fun() -> Self ! {answer, catch_exit(Pool, Address)} end,
    Callers = [spawn(Ask) || _ <- lists:seq(1, Count)],
    mesh_wait:eventually(true, fun() ->
        {ok, #{misses := Misses}} = ?POOL:get_stats(Pool),
        Misses =:= Count
    end),
    ok = ?POOL:stop(Pool),
    [
        receive
            {answer, Answer} -> Answer
        end
     || _ <- Callers
    ].

catch_exit(Pool, Address) ->
    try
        ?POOL:get_or_create_connection(Pool, mesh_peer:node_id(1), Address)
    catch
        exit:Reason -> {exit, Reason}
    end.

a_waiter_that_dies_or_times_out_disturbs_no_one(_Config) ->
    %% Callers give up; those who share their dial must not notice, and a late answer must not
    %% land in the mailbox of somebody who no longer waits.
    mesh_ct:with(#{connect_timeout_ms => 30_000}, [[]], fun(Pool, [Peer]) ->
        ok = mesh_peer:pause(Peer),
        Address = mesh_peer:address(Peer),
        Patient = waiters(5, Pool, <<"slow">>, Address),
        {Mortal, Monitor} = spawn_monitor(fun() ->
            ?POOL:get_or_create_connection(Pool, <<"slow">>, Address)
        end),
        mesh_load:eventually(6, fun() -> mesh_ct:stat(Pool, misses) end),
        Request = {get_or_create_connection, <<"slow">>, Address},
        ?assertExit({timeout, _}, gen_server:call(Pool, Request, 20)),
        exit(Mortal, kill),
        receive
            {'DOWN', Monitor, process, Mortal, killed} -> ok
        end,
        Waiting = mesh_ct:stat(Pool, runtime_tasks),
        ok = mesh_peer:resume(Peer),
        ?assertMatch([{ok, _}], lists:usort(outcomes(Patient))),
        %% All seven answers have been handed to the server, which has sent them on by the time it
        %% answers once more.
        mesh_load:eventually(true, fun() ->
            mesh_ct:stat(Pool, runtime_tasks) =< Waiting - 7
        end),
        ?assertEqual(1, ?POOL:pool_size(Pool)),
        ?assertEqual({messages, []}, process_info(self(), messages)),
        ?assertMatch(#{connections_open := 1}, mesh_peer:wait(Peer, connections_opened, 1))
    end).

a_peer_that_hoards_credits_gets_every_message(_Config) ->
    %% Nodes in the field never give a stream credit back: the original dials for every message,
    %% and a pool that waits for credit would stall after 100.
    Args = ["--mode", "hoard", "--bidi-streams", "100"],
    mesh_ct:with(#{linger_ms => 300}, [Args], fun(Pool, [Peer]) ->
        mesh_load:send_frames(Pool, <<"hoard">>, mesh_peer:address(Peer), lists:seq(0, 1_999)),
        _ = mesh_peer:wait(Peer, messages, 2_000),
        Stats = mesh_load:assert_accounted(Pool, 2_000),
        ?assertMatch(#{renewals := 19, messages_delivered := 2_000, size := 1}, Stats),
        assert_got_all(Peer, 2_000),
        ?assertMatch(#{max_streams_per_connection := 100}, mesh_peer:stats(Peer)),
        mesh_load:await_peers([Peer], connections_closed, 19),
        ?assertMatch(#{connections_open := 1, close_codes := #{0 := 19}}, mesh_peer:stats(Peer))
    end).

a_peer_that_grants_no_stream_is_not_dialled_over_and_over(_Config) ->
    %% Some servers grant none unless they are told to. On another connection there would be none
    %% either, so the message is given up, and whoever sends the next one finds the peer backed off.
    Args = ["--bidi-streams", "0"],
    mesh_ct:with(#{linger_ms => 300}, [Args], fun(Pool, [Peer]) ->
        Address = mesh_peer:address(Peer),
        {ok, _} = ?POOL:get_or_create_connection(Pool, <<"barren">>, Address),
        {ok, #{connection := Connection}} = ?POOL:get_connection_info(Pool, <<"barren">>),
        User = mesh_ct:start_task(fun() -> macula_quic:open_stream(Connection) end),
        mesh_load:eventually(true, fun() -> mesh_ct:is_waiting(User) end),
        mesh_load:send_frames(Pool, <<"barren">>, Address, lists:seq(0, 9)),
        #{messages_dropped := Dropped} = mesh_load:assert_accounted(Pool, 10),
        ?assertEqual({error, no_stream_credit}, mesh_ct:await(User)),
        ?assertEqual(#{no_stream_credit => 10}, Dropped),
        mesh_load:eventually(1, fun() -> mesh_ct:stat(Pool, failing) end),
        ?assertMatch(
            {error, no_stream_credit},
            ?POOL:send(Pool, <<"barren">>, Address, <<"confirmed">>, 20_000)
        ),
        ?assertEqual(2, mesh_ct:stat(Pool, dials)),
        ?assertMatch(#{connections_opened := 2, messages := 0}, mesh_peer:stats(Peer))
    end).

messages_wait_for_no_stream_that_a_user_holds(_Config) ->
    %% A user may keep one stream on each connection that has been replaced, for requests that are
    %% never answered, say: more than may linger. Messages go on.
    Args = ["--mode", "hoard", "--bidi-streams", "2"],
    mesh_ct:with(#{linger_ms => 300}, [Args], fun(Pool, [Peer]) ->
        Address = mesh_peer:address(Peer),
        {ok, _} = ?POOL:get_or_create_connection(Pool, <<"hoard">>, Address),
        {ok, #{connection := Connection}} = ?POOL:get_connection_info(Pool, <<"hoard">>),
        Send = fun(N) ->
            Frame = mesh_peer:frame(N, 8),
            ok = ?POOL:send(Pool, <<"hoard">>, Address, Frame, 20_000)
        end,
        Held = [
            begin
                %% Two streams make a connection full.
                Send(N),
                {ok, Stream} = macula_quic:open_stream(Connection),
                ok = macula_quic:send(Stream, <<"held">>),
                Stream
            end
         || N <- lists:seq(1, ?LINGERING + 1)
        ],
        lists:foreach(Send, lists:seq(?LINGERING + 2, ?LINGERING + 11)),
        _ = mesh_peer:wait(Peer, distinct, ?LINGERING + 11),
        lists:foreach(fun macula_quic:close/1, Held),
        ok = ?POOL:remove_connection(Pool, <<"hoard">>)
    end).

a_slow_peer_holds_up_only_its_own_queue(_Config) ->
    %% One peer behind a bad line must not slow the mesh. At 10 bytes a second it would take hours,
    %% so what has arrived elsewhere has not waited for it.
    Args = [["--mode", "slow:10"], ["--mode", "slow:10"], []],
    mesh_ct:with(#{linger_ms => 100}, Args, fun(Pool, Peers) ->
        Nodes = [<<"slow">>, <<"slower">>, <<"fast">>],
        Frame = mesh_peer:frame(0, 1_000),
        lists:foreach(
            fun({NodeId, Peer}) ->
                Address = mesh_peer:address(Peer),
                [ok = ?POOL:send_async(Pool, NodeId, Address, Frame) || _ <- lists:seq(1, 1_000)]
            end,
            lists:zip(Nodes, Peers)
        ),
        Outstanding = fun(NodeId) ->
            {ok, #{outstanding_messages := Count}} = ?POOL:get_connection_info(Pool, NodeId),
            Count
        end,
        ?assertMatch(#{messages := 1_000}, mesh_peer:wait(lists:last(Peers), messages, 1_000)),
        mesh_load:eventually(0, fun() -> Outstanding(<<"fast">>) end),
        [?assert(Outstanding(NodeId) > 800) || NodeId <- [<<"slow">>, <<"slower">>]]
    end).

a_peer_s_queue_is_bounded_in_messages(_Config) ->
    %% A peer that takes nothing must not take the node's memory; what it costs is counted.
    mesh_ct:with(#{queue_max_messages => 10, connect_timeout_ms => 30_000}, [[]], fun(
        Pool, [Peer]
    ) ->
        ok = mesh_peer:pause(Peer),
        mesh_load:send_frames(Pool, <<"still">>, mesh_peer:address(Peer), lists:seq(0, 24)),
        Full = #{send_queue_full => 15},
        ?assertMatch(
            {ok, #{
                messages_accepted := 10, messages_dropped := Full, outstanding_messages := 10
            }},
            ?POOL:get_stats(Pool)
        ),
        ok = mesh_peer:resume(Peer),
        ?assertMatch(#{messages_delivered := 10}, mesh_load:assert_accounted(Pool, 25)),
        assert_got_all(Peer, 10)
    end).

a_peer_s_queue_is_bounded_in_bytes(_Config) ->
    %% Few messages can be large; a message larger than the queue could never be sent.
    mesh_ct:with(#{queue_max_bytes => 1_024, connect_timeout_ms => 30_000}, [[]], fun(
        Pool, [Peer]
    ) ->
        ok = mesh_peer:pause(Peer),
        Send = fun(Size) ->
            ?POOL:send_async(Pool, <<"still">>, mesh_peer:address(Peer), binary:copy(<<0>>, Size))
        end,
        [ok = Send(Size) || Size <- [500, 1_025, 500, 25, 24, 1]],
        Refused = #{message_too_large => 1, send_queue_full => 2},
        ?assertMatch(
            {ok, #{
                messages_accepted := 3, messages_dropped := Refused, outstanding_bytes := 1_024
            }},
            ?POOL:get_stats(Pool)
        ),
        ok = mesh_peer:resume(Peer),
        Stats = mesh_load:assert_accounted(Pool, 6),
        ?assertMatch(#{messages_delivered := 3, bytes_delivered := 1_024}, Stats),
        ?assertMatch(#{bytes := 1_024}, mesh_peer:wait(Peer, messages, 3))
    end).

all_queues_together_are_bounded_in_messages(_Config) ->
    %% A thousand peers that take nothing must not together take what one may not. Each may always
    %% hold one message, so that nobody is starved by the others.
    Options = #{pool_queue_max_messages => 10, connect_timeout_ms => 30_000},
    mesh_ct:with(Options, [[]], fun(Pool, [Peer]) ->
        ok = mesh_peer:pause(Peer),
        Address = mesh_peer:address(Peer),
        mesh_load:send_frames(Pool, <<"first">>, Address, lists:seq(0, 11)),
        mesh_load:send_frames(Pool, <<"second">>, Address, lists:seq(10, 14)),
        Full = #{pool_queue_full => 6},
        ?assertMatch(
            {ok, #{
                messages_accepted := 11, messages_dropped := Full, outstanding_messages := 11
            }},
            ?POOL:get_stats(Pool)
        ),
        ok = mesh_peer:resume(Peer),
        ?assertMatch(#{messages_delivered := 11}, mesh_load:assert_accounted(Pool, 17)),
        assert_got_all(Peer, 11)
    end).

all_queues_together_are_bounded_in_bytes(_Config) ->
    %% As above, for memory itself.
    Options = #{pool_queue_max_bytes => 1_024, connect_timeout_ms => 30_000},
    mesh_ct:with(Options, [[]], fun(Pool, [Peer]) ->
        ok = mesh_peer:pause(Peer),
        Send = fun(NodeId, Size) ->
            ?POOL:send_async(Pool, NodeId, mesh_peer:address(Peer), binary:copy(<<0>>, Size))
        end,
        [ok = Send(<<"first">>, Size) || Size <- [1_000, 24, 1]],
        [ok = Send(<<"second">>, Size) || Size <- [700, 1]],
        Full = #{pool_queue_full => 2},
        ?assertMatch(
            {ok, #{
                messages_accepted := 3, messages_dropped := Full, outstanding_bytes := 1_724
            }},
            ?POOL:get_stats(Pool)
        ),
        ok = mesh_peer:resume(Peer),
        ?assertMatch(#{messages_delivered := 3}, mesh_load:assert_accounted(Pool, 5))
    end).

messages_that_find_no_room_dial_nobody(_Config) ->
    %% Each peer may have one message though the pool is full, but all of them together no more than
    %% fill it once more. What is refused then must not evict anybody for a connection of no use.
    Options = #{pool_queue_max_bytes => 1_024, connect_timeout_ms => 30_000},
    mesh_ct:with(Options, [], fun(Pool, []) ->
        Nobody = mesh_peer:silent(),
        Message = binary:copy(<<0>>, 1_000),
        [ok = ?POOL:send_async(Pool, <<N>>, Nobody, Message) || N <- lists:seq(1, 10)],
        ?assertMatch(
            {ok, #{
                dialing := 2, messages_accepted := 2, messages_dropped := #{pool_queue_full := 8}
            }},
            ?POOL:get_stats(Pool)
        )
    end).

every_accepted_message_is_accounted_for(_Config) ->
    %% An operator who looks for lost messages needs figures that add up, whatever the peers do.
    Args = [
        [],
        ["--mode", "hoard"],
        ["--mode", "reset"],
        ["--mode", "refuse"],
        ["--mode", "slow:100"],
        ["--mode", "close_after:50"],
        ["--mode", "silent_streams"]
    ],
    Options = #{linger_ms => 300, connect_timeout_ms => 9_000},
    mesh_ct:with(Options, Args, fun(Pool, [Good | _] = Peers) ->
        Numbered = lists:zip(lists:seq(1, length(Peers)), Peers),
        Send = fun(N, Peer) ->
            Indices = lists:seq(0, 999),
            mesh_load:send_frames(Pool, mesh_peer:node_id(N), mesh_peer:address(Peer), Indices)
        end,
        _ = mesh_load:concurrently([fun() -> Send(N, Peer) end || {N, Peer} <- Numbered]),
        mesh_load:send_frames(Pool, <<"nowhere">>, {nowhere}, lists:seq(0, 9)),
        _ = mesh_peer:wait(Good, messages, 1_000),
        [ok = ?POOL:remove_connection(Pool, mesh_peer:node_id(N)) || {N, _} <- Numbered],
        Stats = mesh_load:assert_accounted(Pool, 7_010),
        ?assertMatch(#{messages_dropped := #{bad_address := 10}}, Stats),
        #{messages_delivered := Delivered, messages_unconfirmed := Unconfirmed} = Stats,
        Whole = lists:sum([maps:get(messages, mesh_peer:stats(Peer)) || Peer <- Peers]),
        ?assert(Delivered + Unconfirmed >= Whole),
        assert_got_all(Good, 1_000),
        %% One of them may be back: for what its lost connection had left, at the very moment.
        mesh_load:eventually(true, fun() ->
            mesh_ct:stat(Pool, tasks) =:= ?POOL:pool_size(Pool)
        end)
    end).

peers_are_spread_over_several_sockets(_Config) ->
    %% A socket has one task, and that is one core's work at most.
    mesh_ct:with(#{endpoints => 4}, lists:duplicate(16, []), fun(Pool, Peers) ->
        Numbered = lists:zip(lists:seq(1, 16), Peers),
        Connect = fun({N, Peer}) ->
            {NodeId, Address} = {mesh_peer:node_id(N), mesh_peer:address(Peer)},
            {ok, Stream} = ?POOL:get_or_create_connection(Pool, NodeId, Address),
            mesh_load:send_frames(Pool, NodeId, Address, lists:seq(0, 99)),
            {ok, {_, Port}} = macula_quic:sockname(Stream),
            Port
        end,
        Ports = lists:usort(lists:map(Connect, Numbered)),
        ?assert(length(Ports) > 1),
        ?assert(length(Ports) =< 4),
        [?assertMatch(#{distinct := 100}, mesh_peer:wait(Peer, messages, 100)) || Peer <- Peers],
        mesh_load:assert_accounted(Pool, 1_600)
    end).

a_failed_dial_evicts_nobody(_Config) ->
    %% In the original an unreachable node costs the pool a good connection for each attempt.
    Options = #{max_mesh_connections => 2, connect_timeout_ms => 3_000},
    mesh_ct:with(Options, [[], ["--mode", "refuse"]], fun(Pool, [Peer, Refusing]) ->
        Address = mesh_peer:address(Peer),
        Connect = fun(NodeId, Where) ->
            ?POOL:get_or_create_connection(Pool, NodeId, Where)
        end,
        Fails = fun(Reason, Where) ->
            ?assertEqual({error, {connect_failed, Reason}}, Connect(<<"third">>, Where)),
            ?assertEqual([<<"second">>, <<"first">>], mesh_ct:nodes(Pool))
        end,
        [{ok, _} = Connect(NodeId, Address) || NodeId <- [<<"first">>, <<"second">>]],
        Silent = mesh_peer:silent(),
        ok = ?POOL:send_async(Pool, <<"fourth">>, Silent, <<"lost">>),
        Fails(timeout, Silent),
        Fails(refused, mesh_peer:address(Refusing)),
        Fails({bad_address, nowhere}, nowhere),
        Dropped = fun() -> mesh_ct:stat(Pool, messages_dropped) end,
        mesh_load:eventually(#{timeout => 1}, Dropped),
        ?assertEqual([<<"second">>, <<"first">>], mesh_ct:nodes(Pool)),
        ?assertEqual(0, mesh_ct:stat(Pool, evictions)),
        ?assertMatch(#{connections_open := 2}, mesh_peer:wait(Peer, connections_opened, 2))
    end).

an_evicted_connection_delivers_its_queue_before_it_closes(_Config) ->
    %% What was accepted before the eviction must not be lost to it. The peer stands still until
    %% the eviction has happened, so its queue is full by then.
    Options = #{max_mesh_connections => 1, linger_ms => 40_000},
    mesh_ct:with(Options, [[], []], fun(Pool, [Victim, Other]) ->
        Address = mesh_peer:address(Victim),
        {ok, Stream} = ?POOL:get_or_create_connection(Pool, <<"victim">>, Address),
        ok = mesh_peer:pause(Victim),
        mesh_load:send_frames(Pool, <<"victim">>, Address, lists:seq(0, 499)),
        {ok, _} = ?POOL:get_or_create_connection(Pool, <<"other">>, mesh_peer:address(Other)),
        ?assertEqual([<<"other">>], mesh_ct:nodes(Pool)),
        ?assertEqual({error, evicted}, macula_quic:send(Stream, <<"too late">>)),
        ?assertEqual(500, mesh_ct:stat(Pool, outstanding_messages)),
        ok = mesh_peer:resume(Victim),
        mesh_load:await_peers([Victim], connections_closed, 1),
        assert_got_all(Victim, 500),
        ?assertMatch(#{close_codes := #{0 := 1}}, mesh_peer:stats(Victim)),
        Stats = mesh_load:assert_accounted(Pool, 500),
        ?assertMatch(#{messages_delivered := 500, evictions := 1}, Stats)
    end).

%%% Internal

%% Every frame came once, whole, and each on its own stream.
assert_got_all(Peer, Count) ->
    Stats = mesh_peer:wait(Peer, messages, Count),
    ?assertEqual({missing, []}, mesh_peer:command(Peer, ["missing ", integer_to_list(Count)])),
    ?assertMatch(
        #{
            messages := Count,
            streams := Count,
            distinct := Count,
            duplicates := 0,
            corrupt := 0,
            unframed := 0
        },
        Stats
    ).

%% A caller who asks for a connection, and is not waited for.
dial(Pool, NodeId, Address) ->
    spawn(fun() ->
        try
            ?POOL:get_or_create_connection(Pool, NodeId, Address)
        catch
            exit:_ -> ok
        end
    end).

waiters(Count, Pool, NodeId, Address) ->
    Call = fun() -> exit({done, ?POOL:get_or_create_connection(Pool, NodeId, Address)}) end,
    [spawn_monitor(Call) || _ <- lists:seq(1, Count)].

outcomes(Waiters) ->
    [
        receive
            {'DOWN', Monitor, process, _, Reason} ->
                {done, Outcome} = Reason,
                Outcome
        end
     || {_, Monitor} <- Waiters
    ].

%% A known node to use, or a new one.
pick(new, _Order) -> mesh_peer:node_id(erlang:unique_integer([positive]));
pick(_Step, Order) -> lists:nth(rand:uniform(length(Order)), Order).

%% Uses a node, and waits until it is idle again.
use(send, Pool, NodeId, Address) ->
    ok = ?POOL:send_async(Pool, NodeId, Address, <<"used">>),
    mesh_load:eventually(0, fun() -> mesh_ct:stat(Pool, outstanding_messages) end);
use(_, Pool, NodeId, Address) ->
    {ok, _} = ?POOL:get_or_create_connection(Pool, NodeId, Address),
    ok.
